from babylm_train.tools.lr_finder import main

if __name__ == "__main__":
    main()
