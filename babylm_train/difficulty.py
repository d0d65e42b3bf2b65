from babylm_train.tools.difficulty import main

if __name__ == "__main__":
    main()
