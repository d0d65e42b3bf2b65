from babylm_train.evaluation.command import main

if __name__ == "__main__":
    main()
