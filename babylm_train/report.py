from babylm_train.study.report import main

if __name__ == "__main__":
    main()
